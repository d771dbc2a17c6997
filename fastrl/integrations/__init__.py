"""fastrl's parts inside other trainers."""
