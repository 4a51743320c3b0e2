"""The memory: an append-only, hash-chained store on this machine, and the right to act as an OS lock.

Never in the database that may be restored: a restore would erase the memory of the restore.
"""
