"""What was found, as plain data: records, findings, statistics and where they come from. Nothing here needs torch."""
