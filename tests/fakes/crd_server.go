// Puts definitions and objects to the code that a Kubernetes API server itself runs for them.
//
// Reads {"version", "definitions": [...], "objects": [{"object", "old", "status"}]} and writes, in their
// order, {"server", "definitions": [{"errors", "costs"}], "objects": [[errors]]}. With "version", e.g.
// "1.30", feature gates and expressions are those of that version, as far as this one knows them still.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	definitions "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/validation"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apiextensions-apiserver/pkg/registry/customresource"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	gvk "k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apimachinery/pkg/util/version"
	apicel "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/apiserver/pkg/cel/environment"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/util/compatibility"
	features "k8s.io/apiserver/pkg/util/feature"
	basecompatibility "k8s.io/component-base/compatibility"
	kjson "sigs.k8s.io/json"
)

type question struct {
	Object map[string]any `json:"object"`
	Old    map[string]any `json:"old"`
	Status bool           `json:"status"`
}

type asked struct {
	Definitions []json.RawMessage `json:"definitions"`
	Objects     []question        `json:"objects"`
	Version     string            `json:"version"`
}

type found struct {
	Errors []string          `json:"errors"`
	Costs  map[string]uint64 `json:"costs"`
}

type answer struct {
	Server      string     `json:"server"`
	Definitions []found    `json:"definitions"`
	Objects     [][]string `json:"objects"`
}

type strategies struct {
	object rest.RESTUpdateStrategy
	create rest.RESTCreateStrategy
	status rest.RESTUpdateStrategy
}

func must[T any](value T, err error) T {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return value
}

func texts(errors field.ErrorList) []string {
	all := []string{}
	for _, one := range errors {
		all = append(all, one.Error())
	}
	return all
}

// costs walks a schema as the validation of definitions does: what each rule may cost at most.
func costs(into map[string]uint64, path string, props *apiextensions.JSONSchemaProps, in *definitions.CELSchemaContext) {
	if len(props.XValidations) > 0 {
		info := must(in.TypeInfo())
		set := environment.MustBaseEnvSet(environment.DefaultCompatibilityVersion())
		for i, one := range must(cel.Compile(info.Schema, info.DeclType, apicel.PerCallLimit, set, cel.NewExpressionsEnvLoader())) {
			times := one.MaxCardinality
			if in.MaxCardinality != nil {
				times = *in.MaxCardinality
			}
			into[fmt.Sprintf("%s#%d", path, i)] = one.MaxCost * times
		}
	}
	for name := range props.Properties {
		child := props.Properties[name]
		costs(into, path+"."+name, &child, in.ChildPropertyContext(&child, name))
	}
	if props.Items != nil && props.Items.Schema != nil {
		costs(into, path+"[]", props.Items.Schema, in.ChildItemsContext(props.Items.Schema))
	}
	if props.AdditionalProperties != nil && props.AdditionalProperties.Schema != nil {
		inner := props.AdditionalProperties.Schema
		costs(into, path+"{}", inner, in.ChildAdditionalPropertiesContext(inner))
	}
}

func define(raw []byte, known map[gvk.GroupVersionKind]strategies) found {
	var outer apiextensionsv1.CustomResourceDefinition
	if err := json.Unmarshal(raw, &outer); err != nil {
		return found{Errors: []string{err.Error()}}
	}
	apiextensionsv1.SetDefaults_CustomResourceDefinition(&outer)
	apiextensionsv1.SetDefaults_CustomResourceDefinitionSpec(&outer.Spec)
	outer.Status.StoredVersions = []string{outer.Spec.Versions[0].Name} // as the strategy does before it validates
	var inner apiextensions.CustomResourceDefinition
	if err := apiextensionsv1.Convert_v1_CustomResourceDefinition_To_apiextensions_CustomResourceDefinition(&outer, &inner, nil); err != nil {
		return found{Errors: []string{err.Error()}}
	}
	result := found{texts(definitions.ValidateCustomResourceDefinition(context.Background(), &inner)), map[string]uint64{}}
	if len(result.Errors) > 0 {
		return result
	}
	for _, served := range outer.Spec.Versions {
		var props apiextensions.JSONSchemaProps
		if err := apiextensionsv1.Convert_v1_JSONSchemaProps_To_apiextensions_JSONSchemaProps(served.Schema.OpenAPIV3Schema, &props, nil); err != nil {
			return found{Errors: []string{err.Error()}}
		}
		costs(result.Costs, served.Name, &props, definitions.RootCELContext(&props))
		kind := gvk.GroupVersionKind{Group: outer.Spec.Group, Version: served.Name, Kind: outer.Spec.Names.Kind}
		status := props.Properties["status"]
		whole, _, err := validation.NewSchemaValidator(&props)
		must(whole, err)
		part, _, err := validation.NewSchemaValidator(&status)
		must(part, err)
		strategy := customresource.NewStrategy(
			nil, true, kind, whole, part, must(schema.NewStructural(&props)),
			&apiextensions.CustomResourceSubresourceStatus{}, nil, nil,
		)
		known[kind] = strategies{strategy, strategy, customresource.NewStatusStrategy(strategy)}
	}
	return result
}

func judge(one question, known map[gvk.GroupVersionKind]strategies) []string {
	object := &unstructured.Unstructured{Object: one.Object}
	by, ok := known[object.GroupVersionKind()]
	if !ok {
		return []string{"no such kind: " + object.GroupVersionKind().String()}
	}
	var old runtime.Object
	if one.Old != nil {
		old = &unstructured.Unstructured{Object: one.Old}
	}
	switch {
	case old == nil:
		return texts(by.create.Validate(context.Background(), object))
	case one.Status:
		return texts(by.status.ValidateUpdate(context.Background(), object, old))
	default:
		return texts(by.object.ValidateUpdate(context.Background(), object, old))
	}
}

func main() {
	var in asked
	raw := must(io.ReadAll(os.Stdin))
	// Whole numbers become int64, as in a server; encoding/json makes floats of them.
	if err := kjson.UnmarshalCaseSensitivePreserveInts(raw, &in); err != nil {
		must(0, err)
	}
	if in.Version != "" {
		wanted := version.MustParse(in.Version)
		effective, good := compatibility.DefaultComponentGlobalsRegistry.EffectiveVersionFor(
			basecompatibility.DefaultKubeComponent).(basecompatibility.MutableEffectiveVersion)
		if !good {
			must(0, fmt.Errorf("the effective version cannot be set"))
		}
		effective.SetEmulationVersion(wanted)
		effective.SetMinCompatibilityVersion(wanted)
		must(0, features.DefaultMutableFeatureGate.SetEmulationVersion(wanted))
	}
	known := map[gvk.GroupVersionKind]strategies{}
	out := answer{
		Server:      compatibility.DefaultBuildEffectiveVersion().BinaryVersion().String(),
		Definitions: []found{}, Objects: [][]string{},
	}
	for _, one := range in.Definitions {
		out.Definitions = append(out.Definitions, define(one, known))
	}
	for _, one := range in.Objects {
		out.Objects = append(out.Objects, judge(one, known))
	}
	must(0, json.NewEncoder(os.Stdout).Encode(out))
}
