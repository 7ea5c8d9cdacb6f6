"""What runs beside untrusted code, in processes of its own. It imports nothing of the package: a short, closed list."""
