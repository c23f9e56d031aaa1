// Prints what Continue's own schema makes of a config.yaml, as JSON. Arguments: the node_modules directory and the file.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const [modules, file] = process.argv.slice(2);
const find = createRequire(`${modules}/`);
const { configYamlSchema } = await import(pathToFileURL(find.resolve("@continuedev/config-yaml")));
const { parse } = find("yaml");
process.stdout.write(JSON.stringify(configYamlSchema.parse(parse(readFileSync(file, "utf8")))));
