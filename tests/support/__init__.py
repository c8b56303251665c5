"""Scan builders and helpers that several test files share."""
