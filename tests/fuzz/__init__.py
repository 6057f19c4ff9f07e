"""Replies that no server sends, made from those that one did: none may harm more than its connection."""
