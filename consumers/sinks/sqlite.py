"""The sqlite sink."""
