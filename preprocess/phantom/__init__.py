"""Phantoms: synthetic chest X-rays with findings that can be seen."""
