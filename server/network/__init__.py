"""How sites reach the server, and who is let in."""
