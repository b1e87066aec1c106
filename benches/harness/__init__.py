"""What compare.py is made of: servers, load, measurements, tables."""
