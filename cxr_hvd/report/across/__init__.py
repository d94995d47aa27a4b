"""Results across sites, as tables, drawings and a page."""
