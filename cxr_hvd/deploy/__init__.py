"""A trained network, used: loaded from its run, and asked about new studies."""
