"""One run migrates a database; the others wait for it, and for the server."""
