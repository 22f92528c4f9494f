"""The course: exercises with checks, a notebook, a pocket edition, the lecturer's page."""
