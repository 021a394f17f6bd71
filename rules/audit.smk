"""Auditing and sharing a finished results tree."""
