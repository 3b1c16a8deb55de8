"""From files and hubs to steps: records, formats, tokens, plan, collation."""
