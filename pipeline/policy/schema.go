package policy

import (
	"fmt"
	"reflect"
	"strings"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
)

// factsType is the name of the type of all facts.
const factsType = "Facts"

// schema tells CEL of the facts: their structs become object types whose fields
// have the names of their JSON form, so that a misspelt one does not compile.
// It implements types.Provider and types.Adapter.
type schema struct {
	*types.Registry
	objects map[string]*objectType
}

type objectType struct {
	name   string
	fields map[string]*field
	order  []*field
}

type field struct {
	name    string
	path    []int // as reflect.Value.FieldByIndex takes it
	celType *types.Type
}

func newSchema(root reflect.Type) (*schema, error) {
	registry, err := types.NewRegistry()
	if err != nil {
		return nil, err
	}
	s := &schema{registry, map[string]*objectType{}}
	if _, err := s.typeOf(root); err != nil {
		return nil, err
	}
	return s, nil
}

var (
	timeType     = reflect.TypeFor[time.Time]()
	durationType = reflect.TypeFor[time.Duration]()
)

// typeOf declares a Go type. Pointers are declared as what they point to, and
// has() tells whether they are there.
func (s *schema) typeOf(t reflect.Type) (*types.Type, error) {
	if t == timeType {
		return cel.TimestampType, nil
	}
	switch t.Kind() {
	case reflect.Pointer:
		return s.typeOf(t.Elem())
	case reflect.Bool:
		return cel.BoolType, nil
	case reflect.String:
		return cel.StringType, nil
	case reflect.Int, reflect.Int64:
		if t == durationType {
			return cel.DurationType, nil
		}
		return cel.IntType, nil
	case reflect.Float64:
		return cel.DoubleType, nil
	case reflect.Slice:
		elem, err := s.typeOf(t.Elem())
		if err != nil {
			return nil, err
		}
		return cel.ListType(elem), nil
	case reflect.Struct:
		name := t.Name()
		if _, ok := s.objects[name]; !ok {
			o := &objectType{name: name, fields: map[string]*field{}}
			s.objects[name] = o
			if err := s.fieldsOf(o, t); err != nil {
				return nil, err
			}
		}
		return cel.ObjectType(name), nil
	}
	return nil, fmt.Errorf("a fact of type %s cannot be shown to rules", t)
}

func (s *schema) fieldsOf(o *objectType, t reflect.Type) error {
	for _, f := range reflect.VisibleFields(t) {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous || !f.IsExported() || name == "" || name == "-" {
			continue
		}
		ct, err := s.typeOf(f.Type)
		if err != nil {
			return fmt.Errorf("%s.%s: %w", t.Name(), f.Name, err)
		}
		x := &field{name, f.Index, ct}
		o.fields[name] = x
		o.order = append(o.order, x)
	}
	return nil
}

// FindStructType implements types.Provider.
func (s *schema) FindStructType(name string) (*types.Type, bool) {
	if _, ok := s.objects[name]; !ok {
		return nil, false
	}
	return types.NewTypeTypeWithParam(cel.ObjectType(name)), true
}

// FindStructFieldNames implements types.Provider.
func (s *schema) FindStructFieldNames(name string) ([]string, bool) {
	o, ok := s.objects[name]
	if !ok {
		return nil, false
	}
	var names []string
	for _, f := range o.order {
		names = append(names, f.name)
	}
	return names, true
}

// FindStructFieldType implements types.Provider.
func (s *schema) FindStructFieldType(name, fieldName string) (*types.FieldType, bool) {
	o, ok := s.objects[name]
	if !ok {
		return nil, false
	}
	f, ok := o.fields[fieldName]
	if !ok {
		return nil, false
	}
	return &types.FieldType{
		Type:  f.celType,
		IsSet: func(v any) bool { return !f.of(v).IsZero() },
		GetFrom: func(v any) (any, error) {
			return toCEL(f.of(v)), nil
		},
	}, true
}

func (f *field) of(v any) reflect.Value {
	if o, ok := v.(object); ok {
		return o.v.FieldByIndex(f.path)
	}
	return reflect.ValueOf(v).FieldByIndex(f.path)
}

// NewValue implements types.Provider: rules make no objects.
func (s *schema) NewValue(name string, _ map[string]ref.Val) ref.Val {
	return types.NewErr("values of type %s cannot be made", name)
}

// NativeToValue implements types.Adapter.
func (s *schema) NativeToValue(v any) ref.Val {
	switch v := v.(type) {
	case ref.Val:
		return v
	case reflect.Value:
		return toCEL(v)
	}
	return s.Registry.NativeToValue(v)
}

// toCEL shows a Go value to CEL.
func toCEL(v reflect.Value) ref.Val {
	if v.Type() == timeType {
		return types.Timestamp{Time: v.Interface().(time.Time).UTC()}
	}
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return toCEL(reflect.Zero(v.Type().Elem()))
		}
		return toCEL(v.Elem())
	case reflect.Bool:
		return types.Bool(v.Bool())
	case reflect.String:
		return types.String(v.String())
	case reflect.Int, reflect.Int64:
		if v.Type() == durationType {
			return types.Duration{Duration: time.Duration(v.Int())}
		}
		return types.Int(v.Int())
	case reflect.Float64:
		return types.Double(v.Float())
	case reflect.Slice:
		list := make([]ref.Val, v.Len())
		for i := range list {
			list[i] = toCEL(v.Index(i))
		}
		return types.NewRefValList(types.DefaultTypeAdapter, list)
	case reflect.Struct:
		return object{v}
	}
	return types.NewErr("a fact of type %s cannot be shown to rules", v.Type())
}

// object is a struct of the facts, as CEL sees it.
type object struct{ v reflect.Value }

// ConvertToNative implements ref.Val.
func (o object) ConvertToNative(t reflect.Type) (any, error) {
	if o.v.Type().AssignableTo(t) {
		return o.v.Interface(), nil
	}
	return nil, fmt.Errorf("%s is no %s", o.v.Type().Name(), t)
}

// ConvertToType implements ref.Val.
func (o object) ConvertToType(t ref.Type) ref.Val {
	switch t {
	case types.TypeType:
		return cel.ObjectType(o.v.Type().Name())
	}
	if t.TypeName() == o.v.Type().Name() {
		return o
	}
	return types.NewErr("%s is no %s", o.v.Type().Name(), t.TypeName())
}

// Equal implements ref.Val.
func (o object) Equal(other ref.Val) ref.Val {
	x, ok := other.(object)
	return types.Bool(ok && reflect.DeepEqual(o.v.Interface(), x.v.Interface()))
}

// Type implements ref.Val.
func (o object) Type() ref.Type { return cel.ObjectType(o.v.Type().Name()) }

// Value implements ref.Val. It is the object itself, so that reading a field
// copies no more than the field.
func (o object) Value() any { return o }
