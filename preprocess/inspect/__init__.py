"""Look at study files: counts, distances between sites, duplicates, damage, a page with images."""
