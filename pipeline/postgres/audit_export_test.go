package postgres

import "github.com/dray-project/dray/pipeline"

// PackagesFirstSQL finds a page of these packages after image, of everything in scope.
func PackagesFirstSQL(s pipeline.AuditScope, ids []int64, image, pkg int64) (string, []any) {
	w := where{}
	inScope(&w, s)
	sql := packagesFirst(&w, s.Page.Limit, ids, pair{image, pkg})
	return sql, w.args
}
