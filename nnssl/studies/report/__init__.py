"""The page of a study: tables, figures, provenance."""
