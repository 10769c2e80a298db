package pipeline

import (
	"encoding/json"
	"time"
)

// Events that the owners of projects are told of.
const (
	// NoticeFindings: a vulnerability became known in an image that an
	// environment holds, and the environment's gate objects to it.
	NoticeFindings           = "finding.new"
	NoticePromotionWaiting   = "promotion.waiting"
	NoticePromotionSucceeded = "promotion.succeeded"
	NoticePromotionRefused   = "promotion.refused"
	NoticePromotionFailed    = "promotion.failed"
	NoticeDrift              = "drift.found"
	NoticeBreakGlass         = "break-glass"
)

// NoticeEvents lists them.
func NoticeEvents() []string {
	return []string{NoticeFindings, NoticePromotionWaiting, NoticePromotionSucceeded, NoticePromotionRefused, NoticePromotionFailed,
		NoticeDrift, NoticeBreakGlass}
}

// Notice is something that the owners of a project are told, whoever listens.
// It is written with the change that it tells of.
type Notice struct {
	// Key makes it the same notice however often it is written.
	Key         string `json:"-"`
	Event       string `json:"event"`
	Project     string `json:"project"`
	Environment string `json:"environment,omitempty"`
	Image       *Image `json:"image,omitempty"`
	// Subject is the promotion or the drift that it is about, if any.
	Subject string `json:"subject,omitempty"`
	// Summary says it in one line.
	Summary string    `json:"summary"`
	At      time.Time `json:"at"`
	// Data depends on the event: docs/reference/notifications.md.
	Data json.RawMessage `json:"data,omitempty"`
}

// NoticeDelivery is a notice on its way to one receiver.
type NoticeDelivery struct {
	// ID is the same for all receivers and all attempts.
	ID int64
	// Body is the Notice in JSON, byte by byte the same at every attempt.
	Body []byte
	At   time.Time
	// Attempts that were made before.
	Attempts int
}
