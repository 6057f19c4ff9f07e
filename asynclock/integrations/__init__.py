"""Web frameworks and other libraries. Each module needs the library whose name it has; nothing else imports it."""
