"""The paper's claims, tested on the invented language: see __main__.py, and docs/claims.md."""
