package postgres

// What is verified of a job, as image records and placements have it.
func verifiedOf(job string) []string {
	where := "c.job = " + job
	return []string{
		"verifications=" + fold("verifications c", where, "c.position", "position", "repository", "digest", "verified_at:at"),
		"signatures=" + fold("signatures c", where, "c.verification, c.position",
			"verification", "position", "key_id", "layout", "manifest"),
		"attestations=" + fold("attestations c", where, "c.verification, c.position",
			"verification", "position", "predicate_type", "key_id", "layout", "manifest", "statement"),
	}
}

// protected lists the renditions of all protected tables, all forms of each in
// their order.
func protected() []rendition {
	const over = "t.finished_at IS NOT NULL"
	const runOver = "(SELECT j.finished_at IS NOT NULL FROM jobs j WHERE j.id = t.id)"
	return []rendition{
		{table: "approvals", form: 1, key: []string{"seq:bigint"}, members: []string{
			"seq", "promotion", "author", "roles", "plan", "comment", "rejected", "at:at"}},

		{table: "decisions", form: 1, key: []string{"job"}, members: []string{
			"job", "passed", "decision:sum", "evaluated_at:at", "diff:sum", "summary:sum"}},

		{table: "deliveries", form: 1, key: []string{"seq:bigint"}, members: []string{
			"seq", "forge", "delivery_id", "project", "event:sum", "body_digest", "run", "note", "received_at:at", "accepted_at:at"}},

		{table: "drifts", form: 1, key: []string{"id"}, members: []string{
			"id", "project", "environment", "repository", "digest", "kind", "subject", "detail", "detected_at:at",
			"repaired_at:at", "repair", "resolved_at:at", "blocked"}},

		{table: "exceptions", form: 1, key: []string{"id"}, members: []string{
			"id", "project", "environment", "image", "finding", "package", "reason", "author", "created_at:at", "expires_at:at",
			"revoked_at:at", "revoked_by"}},

		// A run's record with all that is told of it in other tables.
		{table: "image_records", form: 1, key: []string{"run"}, members: append([]string{
			"run", "image", "project", "repository", "commit_sha", "plan_digest", "built:sum", "provenance:sum", "scanned_at:at",
			"scanner", "db_reference", "db_digest", "db_updated_at:at", "recorded_at:at",
			"reports=" + fold("reports c", "c.run = t.run", "c.position", "position", "platform", "digest", "os", "run_user", "hygiene:sum"),
			"sboms=" + fold("sboms c", "c.run = t.run", "c.position", "position", "document:sum"),
			"findings=" + fold("findings c", "c.run = t.run AND c.appeared_at IS NULL", "c.report, c.position",
				"report", "position", "id", "severity", "package", "version", "fixed_in", "title", "url", "purl", "path"),
			// None without a match that says so, which is a row of its own.
			"unmatched=(SELECT count(*) FROM findings c WHERE c.run = t.run AND (c.appeared_at IS NOT NULL OR c.gone_at IS NOT NULL)" +
				" AND NOT EXISTS (SELECT FROM image_matches m WHERE m.run = t.run AND m.changed_at IS NOT NULL))",
		}, verifiedOf("t.run")...)},

		// What matching a record again has changed.
		{table: "image_matches", form: 1, key: []string{"run"}, where: "t.changed_at IS NOT NULL", members: []string{
			"run", "changed_at:at",
			"findings=" + fold("findings c", "c.run = t.run AND (c.appeared_at IS NOT NULL OR c.gone_at IS NOT NULL)", "c.report, c.position",
				"report", "position", "id", "severity", "package", "version", "fixed_in", "title", "url", "purl", "path", "appeared_at:at", "gone_at:at"),
			"verdicts=" + fold("verdicts c", "c.run = t.run", "c.environment, c.rematch",
				"environment", "rematch", "passed_before", "passed", "decision:sum", "judged_at:at"),
		}},

		// Packages are the image's, not a record's: those of its newest.
		{table: "images", form: 1, key: []string{"id:bigint"}, members: []string{
			"id", "project", "digest", "newest", "pruned_at:at",
			"platforms=" + fold("image_platforms c", "c.image = t.id", "c.position", "position", "platform", "digest", "size", "media_type"),
			"packages=" + fold("image_packages c JOIN packages p ON p.id = c.package JOIN paths a ON a.id = c.path JOIN layers l ON l.id = c.layer"+
				" LEFT JOIN license_lists s ON s.id = c.licenses", "c.image = t.id", "c.report, c.position",
				"report", "position", "platform", "type=p.type", "name=p.name", "version=p.version", "purl=p.purl",
				"path=a.path", "layer=l.layer", "licenses=s.licenses"),
		}},

		// While a job is open its state changes with every attempt; that it is open
		// is what counts.
		{table: "jobs", form: 1, key: []string{"id"}, members: []string{
			"id", "kind", "project", "created_at:at", "finished_at:at",
			"state=CASE WHEN " + over + " THEN t.state ELSE 'open' END",
			"reason=CASE WHEN " + over + " THEN t.reason END",
			"started_at=CASE WHEN " + over + " THEN t.started_at AT TIME ZONE 'UTC' END"}},

		{table: "lanes", form: 1, key: []string{"project", "environment"}, sep: "/", members: []string{
			"project", "environment", "current", "placed"}},

		{table: "placements", form: 1, key: []string{"promotion"}, members: append([]string{
			"promotion", "image", "environment", "repository", "copied:sum", "recorded_at:at", "pruned_at:at"}, verifiedOf("t.promotion")...)},

		{table: "project_versions", form: 1, key: []string{"project", "version:integer"}, sep: "@", members: []string{
			"project", "version", "digest", "settings:sum", "created_at:at", "applied_by", "origin"}},

		{table: "projects", form: 1, key: []string{"name"}, members: []string{"name", "version", "active"}},

		{table: "promotions", form: 1, key: []string{"id"}, members: []string{
			"id", "project", "image", "repository", "environment", "requested_by", "roles", "action", "note", "break_glass",
			"idempotency_key", "placed", "replaced"}},

		// What a run has found out counts when it is over.
		{table: "runs", form: 1, key: []string{"id"}, members: []string{
			"id", "event_key=encode(t.event_key, 'hex')", "ref", "event:sum", "retry_of", "first_run", "requested_by", "logs_pruned_at:at",
			"commit_sha=CASE WHEN " + runOver + " THEN t.commit_sha END",
			"source=CASE WHEN " + runOver + " THEN " + sum("t.source") + " END",
			"image_repository=CASE WHEN " + runOver + " THEN t.image_repository END",
			"image_digest=CASE WHEN " + runOver + " THEN t.image_digest END"}},

		// Of the stages, what a gate answered: the stages after it act on that.
		{table: "stages", form: 1, key: []string{"job", "stage", "attempt:integer"}, sep: "/",
			where: "t.stage = 'gate' AND t.state = 'succeeded'", members: []string{
				"job", "stage", "attempt", "state", "outcome:sum", "started_at:at", "finished_at:at"}},

		{table: "tag_moves", form: 1, key: []string{"id:bigint"}, members: []string{
			"id", "job", "position", "repository", "tag", "from_digest", "to_digest", "moved", "held", "note", "recorded_at:at"}},

		{table: "tags", form: 1, key: []string{"repository", "tag"}, sep: ":", members: []string{
			"repository", "tag", "digest", "job", "since:at"}},

		// The hash of a token's hash: who swaps a token is seen, and nothing is told.
		{table: "tokens", form: 1, key: []string{"id:bigint"}, members: []string{
			"id", "name", "hash:bytes", "grants", "created_at:at", "expires_at:at", "revoked_at:at"}},

		{table: "vex_documents", form: 1, key: []string{"id"}, members: []string{
			"id", "project", "document:bytes", "signature:bytes", "uploaded_by", "uploaded_at:at", "revoked_at:at", "revoked_by"}},
	}
}
