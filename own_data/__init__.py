"""Frame features and labels of one's own videos, for make_records.py and extract_features.py."""
