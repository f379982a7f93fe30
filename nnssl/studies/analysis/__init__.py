"""Tables and statistics of finished cells."""
