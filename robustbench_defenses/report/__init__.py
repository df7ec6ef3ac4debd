"""Results become tables, curves, pictures and pages."""
