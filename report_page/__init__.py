"""The pages and tables of report.py, and the pages of the study.

`history` and `evaluation` gather the numbers; `learning`, `failures` and `label_errors` judge them
by fixed rules; `figures` and `content` show them, and `page` makes one HTML file. `runs_table` is
the table of runs. `charts` and `page` know nothing of runs; the study uses them too.
"""
