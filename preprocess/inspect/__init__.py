"""What is in a study file: counts, distances between sites, a contact sheet, a page."""
