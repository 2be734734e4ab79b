"""The spool: where a push is kept from before its answer until Kafka has every report of it.

Folders, under one root (`DLR_SPOOL_DIR`):

```text
<root>/.budget.lock                        held while a log file is made: all processes together keep to one limit
<root>/<made ms>-<random>/                 one folder per process; `lock` is held (flock) as long as it is used
    lock                                   JSON: host, pid and time of whoever holds it
    cursor-<n>.v1                          up to which position everything is settled, two slots
    <first sequence>-<salt>.v1.log         log files, in order of their names
<root>/.<made ms>-<random>/                a folder while it is made
<root>/quarantine/<name>.body, .note       bytes that could go nowhere else, for a person to look at
```

Only these names are ours: other folders and files under the root are neither read nor counted nor removed.

A log file is a sequence of frames (`ingest.runtime.logfile`) in preallocated room. Its first frame, the opening note,
states up to where the files before it are good. Every other frame is one push: receive time, number of reports and
route in the tag, the body untouched; a file that is ended well has a closing note behind them, which vouches for the
last group. The sequence is the push's position; it rises over all files of a folder and is
never used twice, failed writes included.

What holds, whenever the process or the machine stops:

1. `append` returns after the fdatasync that covers the push. Such a push is found again by a later `open_spool` or
   `adopt_each` until it is settled, with its body exactly, in the order of the positions.
2. Only what was given to `append` is ever handed out. A push whose `append` failed or never returned may be: as a
   repeat, with the same content.
3. A log file is only appended to by the process that made it, while every write and sync of it succeeded. After a
   failed sync it is cut at its last good sync, left, and never synced again; the next file's opening note says where.
4. A log file is deleted after the cursor is durable past all of its pushes. A cursor that is too old brings repeats,
   never a gap.
5. Bytes that are no frame although they once were good, sectors that the device has lost included, are copied to
   quarantine before the cursor passes them, counted as one report, and do not keep the frames around them from being
   read. A torn tail of the newest file was promised to nobody, as far as can be told: it is copied too (`-torn`), and
   counts as nothing.
6. The log files of all folders and the quarantine together stay within `DLR_SPOOL_MAX_BYTES`; the quarantine itself is
   never refused for it. A full or failing device refuses pushes, nothing else, and is asked again until it recovers.
7. Opening takes no longer than a few syncs and the reading of a small folder; larger ones are adopted one at a time, by
   whoever asks. A folder that cannot be read is logged and left, and keeps no other from being used. A disk that hangs
   is told from one that is slow by `SpoolOptions.answer_max_s`, then it is treated as broken until it answers.
"""
