export async function startAlignment() {}
