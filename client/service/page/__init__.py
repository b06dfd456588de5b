"""The search page for people: HTML, style and script as they are served, and who serves them."""
