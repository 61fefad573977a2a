"""Bridges to other libraries; each is imported explicitly."""
