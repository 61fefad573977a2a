"""Integrations with other libraries; import each explicitly."""
