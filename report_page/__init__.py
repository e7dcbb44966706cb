"""The pages of report.py and of the study: charts, tables and templates.

`history` and `evaluation` gather the numbers, `figures` and `tables` show them, `page` makes one
HTML file. `charts` and `page` know nothing of runs; the study uses them too.
"""
