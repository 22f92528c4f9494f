"""The one kind of error that a program shows as a line, and not as a traceback."""


class UserError(ValueError):
    """Something that the user can fix. Shown as one line, exit code 2."""


def as_user_error(make, *args):
    """make(*args), its ValueError being something that the user can fix."""
    try:
        return make(*args)
    except ValueError as error:
        raise UserError(str(error)) from None
