"""Where a network looks: maps of a study's images for a label, and whether the maps say anything."""
