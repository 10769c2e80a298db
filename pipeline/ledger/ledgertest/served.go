package ledgertest

import (
	"context"
	"log/slog"

	"github.com/dray-project/dray/pipeline"
	"github.com/dray-project/dray/pipeline/ledger"
)

// Served is a log in memory with everything that the API asks of one.
type Served struct {
	*ledger.Log
	*Memory
	Signer    *ledger.Signer
	sequencer *ledger.Sequencer
}

// Serve makes a log that holds entries, each of which gets the form that is
// written now.
func Serve(ctx context.Context, entries ...pipeline.Entry) (*Served, error) {
	private, _, err := ledger.GenerateKey("dray.example/log")
	if err != nil {
		return nil, err
	}
	s := &Served{Memory: New()}
	if s.Signer, err = ledger.ParseSigner(private); err != nil {
		return nil, err
	}
	if s.Log, err = ledger.NewLog(s.Memory); err != nil {
		return nil, err
	}
	s.sequencer, err = ledger.NewSequencer(ledger.SequencerConfig{Storage: s.Memory, Signer: s.Signer, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		return nil, err
	}
	return s, s.Add(ctx, entries...)
}

// Add writes entries and gives them their places.
func (s *Served) Add(ctx context.Context, entries ...pipeline.Entry) error {
	for _, e := range entries {
		e.Version = pipeline.EntryVersion
		leaf, err := e.Leaf()
		if err != nil {
			return err
		}
		s.Write(leaf)
	}
	return s.sequencer.Once(ctx)
}

// PublicKey is the line that verifiers need.
func (s *Served) PublicKey() string { return s.Signer.PublicKey() }
