//go:build goexperiment.jsonv2

package scanner

import (
	"bytes"
	"container/heap"
	"math"
)

// occurrence is a path's entry in one layer.
type occurrence struct {
	layer int
	entry *entry
}

// merge reads listings side by side and calls visit once for each path, in
// order, with the layers that have it from the lowest up. What visit is given is
// valid for the call.
func merge(lists [][]byte, visit func([]occurrence) error) error {
	h := make(decoders, 0, len(lists))
	for i, l := range lists {
		d := &decoder{layer: i, rest: l}
		switch ok, err := d.next(); {
		case err != nil:
			return err
		case ok:
			h = append(h, d)
		}
	}
	heap.Init(&h)
	var same []*decoder
	var found []occurrence
	for len(h) > 0 {
		same, found = same[:0], found[:0]
		for len(h) > 0 && (len(same) == 0 || bytes.Equal(h[0].entry.path, same[0].entry.path)) {
			d := heap.Pop(&h).(*decoder)
			same = append(same, d)
			found = append(found, occurrence{d.layer, &d.entry})
		}
		if err := visit(found); err != nil {
			return err
		}
		for _, d := range same {
			switch ok, err := d.next(); {
			case err != nil:
				return err
			case ok:
				heap.Push(&h, d)
			}
		}
	}
	return nil
}

// decoders is a heap by path, then by layer.
type decoders []*decoder

func (h decoders) Len() int { return len(h) }
func (h decoders) Less(i, j int) bool {
	c := bytes.Compare(h[i].entry.path, h[j].entry.path)
	return c < 0 || c == 0 && h[i].layer < h[j].layer
}
func (h decoders) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *decoders) Push(x any)   { *h = append(*h, x.(*decoder)) }
func (h *decoders) Pop() any {
	last := len(*h) - 1
	d := (*h)[last]
	*h = (*h)[:last]
	return d
}

// overlay calls visit for each path of the layers, in order, with the entry that
// is there in the end (nil when it was removed) and the bytes that are wasted on
// the path: the sum of the sizes that a file had there, less the smallest of them
// if there is one in the end. Whiteouts and opaque directories count as the OCI image
// specification says (layer.md): they hide what is in the layers below and
// nothing of their own. So does a file that takes the place of a directory.
func overlay(lists [][]byte, visit func(path []byte, top *entry, wasted int64) error) error {
	// cuts are directories whose contents a layer hides from all below it: those
	// that the current path is in.
	type cut struct{ path, layer int } // the length of its path, which last holds
	var cuts []cut
	var last []byte
	return merge(lists, func(found []occurrence) error {
		path := found[0].entry.path
		for len(cuts) > 0 && !within(path, last[:cuts[len(cuts)-1].path]) {
			cuts = cuts[:len(cuts)-1]
		}
		inherited := -1
		if len(cuts) > 0 {
			inherited = cuts[len(cuts)-1].layer
		}
		here, below := inherited, inherited
		var top *entry
		at := -1
		sum, least := int64(0), int64(math.MaxInt64)
		for _, o := range found {
			if o.entry.flags&flagWhiteout != 0 {
				here, below = max(here, o.layer), max(below, o.layer)
			}
			if o.entry.flags&flagOpaque != 0 {
				below = max(below, o.layer)
			}
			switch o.entry.kind() {
			case kindNone:
				continue
			case kindDirectory:
			default:
				below = max(below, o.layer)
			}
			top, at = o.entry, o.layer
			if o.entry.kind() == kindFile {
				sum, least = sum+o.entry.size, min(least, o.entry.size)
			}
		}
		if at < here {
			top = nil
		}
		if top == nil || top.kind() != kindFile {
			least = 0 // all of it is gone
		}
		if below > inherited {
			cuts = append(cuts, cut{len(path), below})
			last = append(last[:0], path...)
		}
		return visit(path, top, sum-least)
	})
}

// within reports whether a path is in the directory.
func within(path, dir []byte) bool {
	return len(dir) == 0 && len(path) > 0 ||
		len(path) > len(dir) && path[len(dir)] == 0 && bytes.Equal(path[:len(dir)], dir)
}
