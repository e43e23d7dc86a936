"""The report of a run as one HTML file: `write_report` in `page.py`."""
