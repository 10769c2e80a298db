// Package ledger makes a Merkle log of the entries that the record writes: it
// gives them their places, signs checkpoints, serves proofs, publishes what was
// signed, and follows such a log from outside.
//
// The formats are C2SP's, so that programs which know nothing of Dray can follow
// it: checkpoints are signed notes (c2sp.org/tlog-checkpoint, c2sp.org/signed-note),
// hashes and entries are served as tiles (c2sp.org/tlog-tiles), and the tree is
// that of RFC 6962.
package ledger
