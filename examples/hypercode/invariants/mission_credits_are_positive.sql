-- A mission without credits can never be worked on.
SELECT id, credits FROM missions WHERE credits <= 0
