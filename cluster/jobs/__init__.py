"""Runs from outside a cluster: what travels, what runs there, who may ask."""
