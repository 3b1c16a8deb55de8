"""The report of a comparison: report.json, and the same as a page and as Markdown."""
