"""How sites reach the server: who gets in, tasks out, replies in."""
