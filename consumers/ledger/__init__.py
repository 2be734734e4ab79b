"""The memory of a partition: the changelog on local disk, and an index over it. Opaque bytes by digest.

What stands in the folder of a partition:

```text
lock              held by whoever uses the folder (flock)
manifest.json     format version, and whose state this is, with a checksum
journal-N-S.log   committed changelog records as they came, a frame each (`ingest.runtime.logfile`), its sequence the
                  changelog offset; N rises by one with each generation of the partition clock, S salts the checksums
run-A-B.idx       sorted (digest, place in the journal, waiting bit), with a Bloom filter; covers the seals A to B
```

Invariants:

1. The journal is a contiguous stretch of the changelog in whole cycles, appended after the commit: behind it at most,
   never ahead. Its end is the position; everything else here can be computed from it.
2. A generation but the last is synced and ends in a footer. Only the last is read and checked at start.
3. A torn tail, and a cycle whose end is missing, is cut at start. Any other damage discards all of it: the changelog
   restores what was there.
4. A place in the journal is a number that rises with the changelog. Of two entries of one digest the greater place
   counts, and generations go in order, so whatever points below the first one left is forgotten.
5. A run goes on where the one before it ends. One that points past the end of the journal, or into a file that was made
   anew, is not used; nor is one that follows on a missing run.
6. No byte is believed unchecked. An entry that is read by its place has a checksum of its own (`changelog`). What is
   walked over, for deadlines or to make runs again, is checked frame by frame. A run is read and checked whole when it
   is opened, since nothing would show that a digest in it is hidden, and once more while it is merged. A bad run is
   made again from the journal; anything else that is bad is damage (3), found at start or later.
7. A sector that cannot be read is damage, too, and must not end the process, as touching it in mapped memory does: what
   no start reads, a generation but the last, is asked for before it is touched.
"""
