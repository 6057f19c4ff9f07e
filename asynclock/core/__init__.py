"""The rules of the lock: no socket, no loop, no clock in here. Time, answers and pushes are passed in."""
