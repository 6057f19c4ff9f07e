"""Between the public face and the servers: what a locker and its scopes are made of. Not for users to import."""
