"""What a number means: records, metrics, diagnostics, the result store."""
