"""The paper's claims, put to the test on the invented language: see __main__.py, and README.md."""
