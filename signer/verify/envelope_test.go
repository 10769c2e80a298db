package verify

import (
	"bytes"
	"crypto"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/dray-project/dray/pipeline"
)

const summaryType = pipeline.PredicateSummary

func TestEnvelope(t *testing.T) {
	k, stranger := newKey(t), newKey(t)
	keys := []crypto.PublicKey{stranger.Public(), k.Public()}
	make := func(payload string) string {
		return envelope([]byte(payload), signed(t, k, preAuthEncoding(PayloadType, []byte(payload))))
	}
	payload := statementOf(summaryType, image)
	good := make(payload)

	st, err := Envelope([]byte(good), image, summaryType, keys)
	if err != nil {
		t.Fatal(err)
	}
	id, err := KeyID(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	if st.KeyID != id || st.Subject != image || st.PredicateType != summaryType || string(st.Payload) != payload || !json.Valid(st.Predicate) || st.Digest == "" {
		t.Errorf("got %+v", st)
	}
	urlSafe := strings.NewReplacer(b64([]byte(payload)), base64.URLEncoding.EncodeToString([]byte(payload))).Replace(good)
	if _, err := Envelope([]byte(urlSafe), image, summaryType, keys); err != nil {
		t.Errorf("in the other base64 alphabet: %v", err)
	}

	sig := b64(signed(t, k, preAuthEncoding(PayloadType, []byte(payload))))
	body := func(signatures string) string {
		return `{"payloadType":"` + PayloadType + `","payload":"` + b64([]byte(payload)) + `","signatures":` + signatures + `}`
	}
	one := `{"keyid":"","sig":"` + sig + `"}`
	if _, err := Envelope([]byte(body("["+one+"]")), image, summaryType, keys); err != nil {
		t.Fatalf("made by hand: %v", err)
	}
	for name, tt := range map[string]struct{ envelope, says string }{
		"empty":                  {"", "not a DSSE envelope"},
		"null":                   {"null", "not a DSSE envelope"},
		"a list":                 {"[]", "not a DSSE envelope"},
		"no fields":              {"{}", "payloadType"},
		"cut":                    {good[:len(good)/2], "not a DSSE envelope"},
		"followed by another":    {good + good, "follows"},
		"payload twice":          {strings.Replace(good, `{"payload`, `{"payload":"","payload`, 1), "twice"},
		"payload null":           {`{"payloadType":"` + PayloadType + `","payload":null,"signatures":[` + one + `]}`, "payload"},
		"payload no base64":      {`{"payloadType":"` + PayloadType + `","payload":"!","signatures":[` + one + `]}`, "base64"},
		"names in capitals":      {strings.Replace(good, `"payload"`, `"Payload"`, 1), "payload"},
		"other payload type":     {strings.Replace(good, PayloadType, "text/plain", 1), "payload"},
		"no signatures":          {body(`[]`), "0 signatures"},
		"signatures null":        {body(`null`), "signatures"},
		"two signatures":         {body("[" + one + "," + one + "]"), "more than one"},
		"many signatures":        {body("[" + strings.Repeat(one+",", 100_000) + one + "]"), "more than one"},
		"signature null":         {body(`[null]`), "signatures"},
		"signature without sig":  {body(`[{}]`), "sig"},
		"empty signature":        {body(`[{"sig":""}]`), "not trusted"},
		"sig twice":              {body(`[{"sig":"","sig":"` + sig + `"}]`), "twice"},
		"signature of others":    {body(`[{"sig":"` + b64(signed(t, newKey(t), preAuthEncoding(PayloadType, []byte(payload)))) + `"}]`), "not trusted"},
		"over the bare payload":  {body(`[{"sig":"` + b64(signed(t, k, []byte(payload))) + `"}]`), "not trusted"},
		"another payload":        {strings.Replace(good, b64([]byte(payload)), b64([]byte(statementOf(summaryType, other))), 1), "not trusted"},
		"about another image":    {make(statementOf(summaryType, other)), "another image"},
		"of another type":        {make(statementOf(pipeline.PredicateProvenance, image)), "is of type"},
		"a type that starts so":  {make(statementOf(summaryType+"0", image)), "is of type"},
		"no statement":           {make(`{}`), "_type"},
		"text":                   {make(`hello`), "statement"},
		"subject twice":          {make(strings.Replace(payload, `"subject"`, `"subject":[],"subject"`, 1)), "twice"},
		"type twice":             {make(strings.Replace(payload, `"predicateType"`, `"predicateType":"x","predicateType"`, 1)), "twice"},
		"no predicate":           {make(strings.Replace(payload, `"predicate"`, `"x"`, 1)), "no predicate"},
		"predicate null":         {make(payload[:strings.Index(payload, `"predicate":`)] + `"predicate":null}`), "no predicate"},
		"predicate is a list":    {make(payload[:strings.Index(payload, `"predicate":`)] + `"predicate":[]}`), "no predicate"},
		"escape sequences":       {make(statementOf(`x\u001b[31m\n`, image)), "is of type"},
		"a type of a megabyte":   {make(statementOf(strings.Repeat("x", 1<<20), image)), "is of type"},
		"nested a million times": {strings.Repeat(`{"payload":`, 1<<20), "not a DSSE envelope"},
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			_, err := Envelope([]byte(tt.envelope), image, summaryType, keys)
			if !errors.Is(err, pipeline.ErrUnverified) || !strings.Contains(err.Error(), tt.says) {
				t.Fatalf("got %v, want ErrUnverified that says %q", err, tt.says)
			}
			if len(err.Error()) > 1000 || strings.ContainsAny(err.Error(), "\x1b\n") {
				t.Errorf("the error is unfit for a log: %d bytes, %.300q", len(err.Error()), err)
			}
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
	if _, err := Envelope(bytes.Repeat([]byte(" "), maxEnvelope+1), image, summaryType, keys); !errors.Is(err, pipeline.ErrUnverified) || !strings.Contains(err.Error(), "bound") {
		t.Errorf("too large: %v", err)
	}
	for name, ask := range map[string]func() error{
		"no keys":   func() error { _, err := Envelope([]byte(good), image, summaryType, nil); return err },
		"no digest": func() error { _, err := Envelope([]byte(good), "", summaryType, keys); return err },
		"no type":   func() error { _, err := Envelope([]byte(good), image, "", keys); return err },
	} {
		if err := ask(); !errors.Is(err, pipeline.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
	if _, err := Envelope([]byte(good), image, summaryType, keys[:1]); !errors.Is(err, pipeline.ErrUnverified) {
		t.Errorf("with another key: %v", err)
	}
}

// FuzzEnvelope: whatever is signed by nobody does not verify, and what is
// signed says nothing of another image or type.
func FuzzEnvelope(f *testing.F) {
	k := newKey(f)
	keys := []crypto.PublicKey{k.Public()}
	payload := []byte(statementOf(summaryType, image))
	f.Add([]byte(envelope(payload, signed(f, k, preAuthEncoding(PayloadType, payload)))), false)
	f.Add(payload, true)
	f.Add([]byte(statementOf(summaryType, other)), true)
	f.Fuzz(func(t *testing.T, raw []byte, sign bool) {
		if sign {
			raw = []byte(envelope(raw, signed(t, k, preAuthEncoding(PayloadType, raw))))
		}
		st, err := Envelope(raw, image, summaryType, keys)
		if err != nil {
			if !errors.Is(err, pipeline.ErrUnverified) {
				t.Fatalf("%v does not wrap ErrUnverified", err)
			}
			return
		}
		if !bytes.Contains(st.Payload, []byte(image.Hex())) || !json.Valid(st.Predicate) {
			t.Fatalf("%s passes", st.Payload)
		}
	})
}
