"""What the commands end with. docs/shell.md has the tables."""

FREE = 1
NOT_ACQUIRED = 1
WRONG_USAGE = 2
LOST = 75  # EX_TEMPFAIL of sysexits.h
FAILED = 125  # this one and the next two: as env, nohup and timeout have them
NOT_RUNNABLE = 126
NOT_FOUND = 127
