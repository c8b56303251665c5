"""Subcommands around scanners and archives."""
